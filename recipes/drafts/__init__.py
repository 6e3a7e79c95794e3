"""Training what drafts: feature heads, sorted exits, lexical units, drafts that learn online."""

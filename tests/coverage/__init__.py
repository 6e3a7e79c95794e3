"""The coverage table: which architectures of `transformers` pass their gates on which engine."""

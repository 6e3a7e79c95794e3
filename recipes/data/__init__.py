"""Images with labels, from what users have: a folder, parquet files, or scikit-learn's digits."""

"""The demo corpus: emoji drawings by eight artists with their captions, in one Parquet file."""

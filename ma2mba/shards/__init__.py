"""The on-disk contract between data preparation and training: folders of checksummed Parquet files."""

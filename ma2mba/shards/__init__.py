"""The storage format between data preparation and training: folders of Parquet files with checksums."""

"""Image sets, pixels, table schemas, Parquet, builds."""

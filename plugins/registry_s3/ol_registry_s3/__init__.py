"""A handler registry of olcore in an S3 bucket or at any other fsspec URL."""

"""The policies; every module here is read."""

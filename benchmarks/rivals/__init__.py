"""What a user would build or install instead, as small as it can honestly be."""

"""Learning: optimizer state and update rules of table rows."""

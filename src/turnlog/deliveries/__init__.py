"""Delivers the log to webhooks: claims says which, session does it, window and retries know what and when."""

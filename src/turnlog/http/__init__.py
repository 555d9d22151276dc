"""The wire: HTTP in, HTTP out. Knows the service and no store."""

"""What breaks servers, inflicted: drivers, the load beside them, and the ledger of what came of it."""

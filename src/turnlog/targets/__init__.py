"""Where an import goes: a store, in process, or a running server, over HTTP."""

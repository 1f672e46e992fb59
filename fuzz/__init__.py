"""Random inputs against promises: `make fuzz`. A target's case raises Fault where a promise is broken."""

"""What `run-launcher` does: `app` names the commands and their options, the other modules perform them."""

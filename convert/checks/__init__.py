"""How an export is checked and described."""

"""Sources of captioned images -> one checked caption table. No torch in here."""

"""How good masks are: the field's measures in millimetres, with statistics, tables and pictures."""

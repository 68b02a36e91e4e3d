"""What is known of boards: one TOML file a board, the schema that reads them, and the catalogue of all of them."""

"""Published tables: recipes, their records and the pages rendered from them."""

"""Where jobs start: recipes, and what knows about machines."""

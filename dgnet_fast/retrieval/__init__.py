"""Finding people: features of pictures, galleries that are searched, and scores."""

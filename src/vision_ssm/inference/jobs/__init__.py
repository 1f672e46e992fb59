"""Jobs over many images: cut into pieces, done by many workers, each piece written whole, and resumed."""

"""One job: a trained network and photos in; a smaller, faster network, its files and a report out."""

"""What Flask-AutoSession costs. ``tox run -e bench`` runs all of it."""

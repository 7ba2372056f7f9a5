"""Layer 6: the course labs. What a student gets is in `releases/`; the solved sources and the hidden tests are not here."""

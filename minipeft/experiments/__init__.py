"""Layer 5: experiments that compare methods."""

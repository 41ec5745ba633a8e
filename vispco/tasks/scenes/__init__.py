"""Pictures of small things on cluttered grounds, and questions about them; everything is drawn, nothing is loaded."""

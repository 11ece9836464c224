//! The engine of Aquatint: from a request to events and an image.

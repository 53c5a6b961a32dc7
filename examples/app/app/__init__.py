"""Items stored in MongoDB, searched in ChromaDB, cached in Redis: what Groundwork's demo deploys."""

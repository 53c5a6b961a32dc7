"""What a scenario's inventory says of the stack: `lab_host("name", "10.87.0.x", **STACK)`."""

from lab import REPOSITORY, REPOSITORY_KEY

STACK = {
    "mongodb_series": "6.0",
    "mongodb_repository": f"{REPOSITORY}/mongodb/apt",
    "mongodb_repository_key": REPOSITORY_KEY,
    "mongodb_users": [{"name": "grid_user", "database": "urban_grid_ai", "roles": ["readWrite"]}],
    "app_source": "examples/app",
}

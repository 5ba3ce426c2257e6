"""The API at the service's own address, behind the hub's login: JSON for users, services and pages."""

"""Labs as services of a Docker Swarm: on the machine that their lease is on, in overlay networks."""

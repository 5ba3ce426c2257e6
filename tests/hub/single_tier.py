"""A site with one tier and one image: nobody has anything to choose."""

c = get_config()  # noqa: F821

c.GpuSite.tiers = [{"name": "gpu", "title": "One GPU", "devices": 1}]
c.GpuDockerSpawner.allowed_images = []

"""The pages of the hub's service, and all its addresses: `serving.serve_pages` for the broker.

/services/gpu/             "My GPU", in the hub's own templates
/services/gpu/admin/       "Devices", for holders of `custom:gpu:read`
…live                      a page's changing part, fetched by its script
/services/gpu/api/status   devices, leases, queue, as far as the asker may see them
/services/gpu/api/tiers    the tiers and how much of each is free
/services/gpu/api/quotas   (grants, report, sessions): the rules; see `api/public/rules.py`
/services/gpu/metrics      Prometheus text, for holders of `custom:gpu:read`
/services/gpu/health       "the broker answers"; needs no login
"""

"""Whether the moto server checks credentials."""

import urllib.request


def set_free_requests(endpoint, count):
    """Requests that moto lets through before it checks credentials."""
    request = urllib.request.Request(  # noqa: S310 - the test's own server
        f"{endpoint}/moto-api/reset-auth",
        data=count.encode(),
        headers={"Content-Type": "text/plain"},
        method="POST",
    )
    urllib.request.urlopen(request).read()  # noqa: S310

"""A network between guests in user space: links, home routers with the NATs of RFC 4787, and a host where hubs run."""

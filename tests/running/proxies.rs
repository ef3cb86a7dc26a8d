//! `scripts/haproxy.cfg` and `scripts/nginx.conf`: the real balancers before two processes.

"""An Envoy that asks an endpoint picker and believes it."""

from __future__ import annotations

from typing import Any

_KINDS = "type.googleapis.com/envoy.extensions"
_HTTP_2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": f"{_KINDS}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}


def configuration(port: int, picker: int, *, duplex: bool) -> dict[str, Any]:
    """Return what listens on a port of this machine and asks the picker at another."""
    body = "FULL_DUPLEX_STREAMED" if duplex else "BUFFERED"
    trailers = {"request_trailer_mode": "SEND", "response_trailer_mode": "SEND"} if duplex else {}
    picking = {
        "@type": f"{_KINDS}.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}, "timeout": "60s"},
        "message_timeout": "5s",
        "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": body,
            "response_header_mode": "SEND",
            "response_body_mode": body if duplex else "STREAMED",
            **trailers,
        },
    }
    routing = {"@type": f"{_KINDS}.filters.http.router.v3.Router"}
    manager = {
        "@type": f"{_KINDS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "turns",
        "http_filters": [
            {"name": "picking", "typed_config": picking},
            {"name": "envoy.filters.http.router", "typed_config": routing},
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {"match": {"prefix": "/"}, "route": {"cluster": "chosen", "timeout": "0s"}}
                    ],
                }
            ]
        },
    }
    chosen = {
        "name": "chosen",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "1s",
        "original_dst_lb_config": {
            "use_http_header": True,
            "http_header_name": "x-gateway-destination-endpoint",
        },
    }
    asked = {
        "name": "picker",
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": _HTTP_2,
        "load_assignment": {
            "cluster_name": "picker",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(picker)}}]}],
        },
    }
    listener = {
        "name": "door",
        "address": _address(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [chosen, asked]}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

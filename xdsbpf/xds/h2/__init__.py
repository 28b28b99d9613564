"""gRPC over HTTP/2 (RFC 9113), server side, for few long streams of shared bytes.

`connection` and what it imports is a state machine without I/O: bytes in, events and bytes out. `call`, `protocol`,
`server` and `tls` carry it on asyncio. Serves the `Handler`s of `xds.transport`; knows no xDS.
"""

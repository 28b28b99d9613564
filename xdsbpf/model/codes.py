"""The only table of diagnostic codes of reading and validation: code -> title.

Codes are stable: one is never given another meaning. XB10xx are found by the reader and the catalog
of sources, XB11xx by the validation of metadata and shared fields, XB12xx to XB15xx per kind, XB16xx in raw Envoy
resources.
"""

from __future__ import annotations

SYNTAX = "XB1001"
NOT_AN_OBJECT = "XB1002"
UNKNOWN_KIND = "XB1003"
UNSUPPORTED_KIND = "XB1004"
UNSUPPORTED_VERSION = "XB1005"
UNREADABLE_FILE = "XB1006"
LIMIT = "XB1007"
SHADOWED = "XB1008"
LAST_GOOD = "XB1009"
FAIL_CLOSED = "XB1010"
VANISHED = "XB1011"
MASS_REMOVAL = "XB1012"
HALF_WRITTEN = "XB1013"
SOURCE_LOST = "XB1014"
UNKNOWN_FIELD = "XB1021"
DUPLICATE_KEY = "XB1022"
MISSING_FIELD = "XB1023"
WRONG_TYPE = "XB1024"
BAD_CHOICE = "XB1025"
OUT_OF_RANGE = "XB1026"
BAD_FORMAT = "XB1027"
NULL_ENTRY = "XB1028"
BAD_TAG = "XB1029"
EMPTY_LIST = "XB1030"
BAD_NAME = "XB1101"
BAD_NAMESPACE = "XB1102"
BAD_LABEL = "XB1103"
BAD_EXPORT = "XB1104"
BAD_HOST = "XB1105"
BAD_REGEX = "XB1106"
BAD_TIME = "XB1107"
BAD_PORT = "XB1108"
BAD_PERCENT = "XB1109"
BAD_SUBNET = "XB1110"
BAD_SELECTOR = "XB1111"
BAD_TARGET = "XB1112"
DEPRECATED = "XB1113"
BAD_HEADER = "XB1114"
BAD_ANNOTATION = "XB1115"
VS_NO_ROUTES = "XB1201"
VS_HOSTS = "XB1202"
VS_GATEWAY = "XB1203"
VS_ACTION = "XB1204"
VS_DELEGATE = "XB1205"
VS_REDIRECT = "XB1206"
VS_DIRECT_RESPONSE = "XB1207"
VS_REWRITE = "XB1208"
VS_DESTINATION = "XB1209"
VS_WEIGHT = "XB1210"
VS_MATCH = "XB1211"
VS_HEADERS = "XB1212"
VS_RETRIES = "XB1213"
VS_FAULT = "XB1214"
VS_MIRROR = "XB1215"
VS_CORS = "XB1216"
VS_TLS = "XB1217"
VS_TCP = "XB1218"
VS_UNREACHABLE = "XB1219"
DR_SUBSET = "XB1301"
DR_POLICY = "XB1302"
DR_PORT_LEVEL = "XB1303"
DR_TUNNEL = "XB1304"
DR_POOL = "XB1305"
DR_OUTLIER = "XB1306"
DR_HASH = "XB1307"
DR_LOCALITY = "XB1308"
DR_WARMUP = "XB1309"
DR_TLS = "XB1310"
DR_SELECTOR = "XB1311"
DR_RETRY_BUDGET = "XB1312"
AP_ACTION = "XB1401"
AP_RULE = "XB1402"
AP_VALUE = "XB1403"
AP_CONDITION = "XB1404"
AP_CUSTOM = "XB1405"
AP_HTTP_ONLY_DENY = "XB1406"
KUBE_SERVICE = "XB1501"
KUBE_PORTS = "XB1502"
KUBE_ADDRESS = "XB1503"
KUBE_WORKLOAD = "XB1504"
ENVOY_FILE = "XB1601"
ENVOY_TYPE = "XB1602"
ENVOY_NAME = "XB1603"
ENVOY_CHOICE = "XB1604"
ENVOY_REFUSED = "XB1605"

TITLES: dict[str, str] = {
    SYNTAX: "the text is not YAML; nothing of the file is taken",
    NOT_AN_OBJECT: "a document is no manifest object; nothing of the file is taken",
    UNKNOWN_KIND: "a kind is not recognised and the object is ignored",
    UNSUPPORTED_KIND: "a kind is recognised and not supported yet",
    UNSUPPORTED_VERSION: "the API version of the kind is not supported",
    UNREADABLE_FILE: "a file cannot be read",
    LIMIT: "a limit of size, depth or number is exceeded",
    SHADOWED: "another object of the same kind, namespace and name comes later",
    LAST_GOOD: "the object is invalid and its last good version stays in force",
    FAIL_CLOSED: "a security object is invalid and denies what it selects",
    VANISHED: "an object vanished from a file and is held for a moment",
    MASS_REMOVAL: "most objects of a file vanished and are held until confirmed",
    HALF_WRITTEN: "a file looks half-written and is held for a moment",
    SOURCE_LOST: "a directory is gone and its objects stay in force",
    UNKNOWN_FIELD: "a field is not known",
    DUPLICATE_KEY: "a key is given twice",
    MISSING_FIELD: "a required field is missing",
    WRONG_TYPE: "a value has the wrong type",
    BAD_CHOICE: "a value is not one of the allowed ones",
    OUT_OF_RANGE: "a number is out of range",
    BAD_FORMAT: "a duration, percentage or time cannot be read",
    NULL_ENTRY: "an entry of a list or map is null",
    BAD_TAG: "a YAML tag is not supported",
    EMPTY_LIST: "a list is given and empty",
    BAD_NAME: "the name of an object is not valid",
    BAD_NAMESPACE: "a namespace is not valid",
    BAD_LABEL: "a label key or value is not valid",
    BAD_EXPORT: "exportTo is not valid",
    BAD_HOST: "a host is not valid",
    BAD_REGEX: "a regular expression is not valid",
    BAD_TIME: "a duration is not allowed here",
    BAD_PORT: "a port is not valid",
    BAD_PERCENT: "a percentage is not between 0 and 100",
    BAD_SUBNET: "an address or subnet is not valid",
    BAD_SELECTOR: "a selector is not valid",
    BAD_TARGET: "a targetRef is not valid",
    DEPRECATED: "a field is deprecated",
    BAD_HEADER: "a header name is not valid",
    BAD_ANNOTATION: "the value of an annotation is not valid",
    VS_NO_ROUTES: "a VirtualService has no http, tcp or tls part",
    VS_HOSTS: "the hosts of a VirtualService are not valid",
    VS_GATEWAY: "a gateway name of a VirtualService is not valid",
    VS_ACTION: "an http route must have exactly one action",
    VS_DELEGATE: "a delegate is not valid",
    VS_REDIRECT: "a redirect is not valid",
    VS_DIRECT_RESPONSE: "a directResponse is not valid",
    VS_REWRITE: "a rewrite is not valid",
    VS_DESTINATION: "a destination is not valid",
    VS_WEIGHT: "the weights of a route are not valid",
    VS_MATCH: "a match is not valid",
    VS_HEADERS: "a header operation is not valid",
    VS_RETRIES: "retries are not valid",
    VS_FAULT: "a fault is not valid",
    VS_MIRROR: "a mirror is not valid",
    VS_CORS: "a corsPolicy is not valid",
    VS_TLS: "a tls route is not valid",
    VS_TCP: "a tcp route is not valid",
    VS_UNREACHABLE: "a rule can never be reached",
    DR_SUBSET: "a subset is not valid",
    DR_POLICY: "a trafficPolicy is empty",
    DR_PORT_LEVEL: "portLevelSettings are not valid",
    DR_TUNNEL: "a tunnel is not valid",
    DR_POOL: "a connectionPool is not valid",
    DR_OUTLIER: "outlierDetection is not valid",
    DR_HASH: "consistentHash is not valid",
    DR_LOCALITY: "localityLbSetting is not valid",
    DR_WARMUP: "warmup is not valid",
    DR_TLS: "tls settings are not valid",
    DR_SELECTOR: "workloadSelector does not go with exportTo",
    DR_RETRY_BUDGET: "a retryBudget is not valid",
    AP_ACTION: "action, provider and rules do not go together",
    AP_RULE: "a rule is not valid",
    AP_VALUE: "a value of a rule is not valid",
    AP_CONDITION: "a condition is not valid",
    AP_CUSTOM: "a CUSTOM rule uses a field that it cannot have",
    AP_HTTP_ONLY_DENY: "a DENY rule uses HTTP fields only and denies all TCP in its scope",
    KUBE_SERVICE: "a Service is not valid",
    KUBE_PORTS: "ports are not valid",
    KUBE_ADDRESS: "an address is not valid or must not be used",
    KUBE_WORKLOAD: "a Pod, Deployment or Node is not valid",
    ENVOY_FILE: "a file of Envoy resources has the wrong form; nothing of it is taken",
    ENVOY_TYPE: "the @type of an Envoy resource is missing or not known",
    ENVOY_NAME: "an Envoy resource has no name, or two",
    ENVOY_CHOICE: "two fields of an Envoy resource exclude each other",
    ENVOY_REFUSED: "a real Envoy refuses the resource; nothing of its file is taken",
}

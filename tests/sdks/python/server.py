"""The Python server SDK, flags by polling: BASE is where flags and events go, KEY the SDK key."""
import logging
import os
import sys
import time

from ldclient import Context
from ldclient.client import LDClient
from ldclient.config import Config

base, key = sys.argv[1:3]
logging.basicConfig(level=logging.WARNING)
client = LDClient(
    Config(key, base_uri=base, stream_uri=base, events_uri=base, stream=False, flush_interval=600,
           enable_event_compression=os.environ.get("GZIP") == "1",
           application={"id": "driver", "version": "1.0"}),
    start_wait=10)
assert client.is_initialized(), "no flags"
ada = Context.builder("ada").name("Ada ☃").set("big", 9007199254740993).set("tiny", 1e-7).private("name").build()
multi = Context.create_multi(Context.create("ada"), Context.create("org-1", "org"))
for number in range(3):
    for context in (ada, multi):
        client.variation("tracked", context, False)
        client.variation_detail("ruled", context, "none")
        client.variation("debugged", context, 0)
        client.variation("unknown", context, {"nested": [1, None]})
    client.identify(multi)
    client.track("bought", ada, {"price": 1.7976931348623157e308, "text": "é \u2028", "round": number}, 0.1)
    client.flush()
    time.sleep(0.2)
client.track("last", multi, None, -3)
client.close()

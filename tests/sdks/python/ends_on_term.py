"""An application with the Python server SDK that tracks, and flushes when it is told to end, as applications should.

EVENTS is the events URI, KEY the SDK key; DELAY the seconds that it takes to end after TERM. Flags come from the process.
"""
import signal
import sys
import time

from ldclient import Context
from ldclient.client import LDClient
from ldclient.config import Config
from ldclient.integrations.test_data import TestData

events, key, delay = sys.argv[1:4]
# Blocked before the SDK has threads, and taken by sigwait below.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
client = LDClient(
    Config(key, events_uri=events, update_processor_class=TestData.data_source(), flush_interval=600), start_wait=10)
user = Context.create("ada")
client.track("first", user)
client.flush()
client.track("second", user)
print("running", flush=True)
signal.sigwait([signal.SIGTERM])
time.sleep(float(delay))
client.track("last", user)
client.close()

'use strict';
// The client-side Node SDK, flags by polling: BASE is where flags and events go, KEY the client-side id.
const fs = require('fs');
const os = require('os');
const path = require('path');
const LD = require('launchdarkly-node-client-sdk');

const [base, key] = process.argv.slice(2);
const storage = fs.mkdtempSync(path.join(os.tmpdir(), 'flagtap-node-client-'));
const logger = { error: console.error, warn: console.error, info() {}, debug() {} };
const client = LD.initialize(key, { kind: 'user', key: 'ada', name: 'Ada ☃' }, {
  baseUrl: base, streamUrl: base, eventsUrl: base, logger, localStoragePath: storage, flushInterval: 600000,
  evaluationReasons: true,
});

(async () => {
  await client.waitForInitialization(10);
  client.variation('tracked', false);
  client.variationDetail('debugged', 0);
  client.track('bought', { price: 9.99, text: '漢字 \u2028' }, 9.99);
  await client.flush();
  await client.identify({ kind: 'multi', user: { key: 'ada' }, org: { key: 'org-1' } });
  client.variation('tracked', false);
  client.track('plain');
  await client.close();
  fs.rmSync(storage, { recursive: true, force: true });
  process.exit(0); // the SDK keeps the timer of its initialisation
})().catch((error) => { console.error(error); process.exit(1); });

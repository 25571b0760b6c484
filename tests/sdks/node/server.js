'use strict';
// The server-side Node SDK, flags by stream: BASE is where flags and events go, KEY the SDK key.
const LD = require('@launchdarkly/node-server-sdk');

const [base, key] = process.argv.slice(2);
const logger = { error: console.error, warn: console.error, info() {}, debug() {} };
const client = LD.init(key, {
  baseUri: base, streamUri: base, eventsUri: base, logger, flushInterval: 600, enableEventCompression: process.env.GZIP === '1',
  application: { id: 'driver', version: '1.0' },
});
const ada = { kind: 'user', key: 'ada', name: 'Ada ☃', email: 'ada@example.com', _meta: { privateAttributes: ['email'] } };
const multi = { kind: 'multi', user: { key: 'ada' }, org: { key: 'org-1', name: 'Acme' } };
const anonymous = { kind: 'user', key: 'kiosk', anonymous: true, device: 'k1' };

(async () => {
  await client.waitForInitialization({ timeout: 10 });
  for (let round = 0; round < 3; round += 1) {
    for (const context of [ada, multi, anonymous]) {
      await client.variation('tracked', context, false);
      await client.variationDetail('ruled', context, 'none');
      await client.variation('debugged', context, 0);
      await client.variation('unknown', context, { nested: [1, null] });
    }
    client.identify(multi);
    client.track('bought', ada, { price: 1e21, text: 'e\u0301 \u2028 "quoted"', round }, 0.1);
    client.track('plain', anonymous);
    await client.flush();
  }
  client.track('last', multi, null, -3);
  await client.flush();
  client.close();
})().catch((error) => { console.error(error); process.exit(1); });

// segment.js URL WRITE_KEY: one message of each kind that flagtap sends, with Segment's own client.
const { Analytics } = require("@segment/analytics-node");

const [host, writeKey] = process.argv.slice(2);
const analytics = new Analytics({ host, writeKey, maxRetries: 0, flushAt: 3 });
analytics.on("error", (error) => {
  console.error(error);
  process.exitCode = 1;
});
const timestamp = new Date("2024-01-13T02:09:06.120Z");
analytics.track({ userId: "u-17", event: "feature", messageId: "own-id", timestamp, properties: { key: "flag", n: 1 } });
analytics.track({ anonymousId: "d-9", event: "custom", properties: {} });
analytics.page({ userId: "u-17", anonymousId: "d-9", properties: { url: "https://a.example/?q=1" } });
analytics.alias({ userId: "u-17", previousId: "anon-9" });
analytics.closeAndFlush({ timeout: 5000 });

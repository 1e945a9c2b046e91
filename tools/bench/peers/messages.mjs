// The messages of Exotel's Voicebot protocol that an echo needs.
export const start = (sid) =>
  JSON.stringify({ event: 'start', stream_sid: sid, start: { stream_sid: sid, call_sid: sid } });

export const media = (sid, pcm) =>
  JSON.stringify({ event: 'media', stream_sid: sid, media: { payload: pcm.toString('base64') } });

export const payload = (message) => {
  const { event, media: found } = JSON.parse(message);
  return event === 'media' ? Buffer.from(found.payload, 'base64') : undefined;
};

// AudioSocket to an Exotel-style application by the npm package asterisk-audiosocket, as its README says:
// 'audio' events from the caller, paced play() towards him.
// node relay_ict.mjs PORT APPLICATION_URL
import { AudioSocketServer } from 'asterisk-audiosocket';
import { WebSocket } from 'ws';
import { media, payload, start } from './messages.mjs';

const [port, url] = process.argv.slice(2);
const server = new AudioSocketServer({ port: Number(port) });
server.on('connection', (call) => {
  let application;
  let sid = '';
  call.on('id', (uuid) => {
    sid = uuid.replaceAll('-', '');
    application = new WebSocket(url, { perMessageDeflate: false });
    application.on('open', () => application.send(start(sid)));
    application.on('message', (message) => {
      const pcm = payload(message);
      if (pcm) call.play(pcm);
    });
    application.on('close', () => call.hangup());
    application.on('error', () => call.hangup());
  });
  call.on('audio', (pcm) => {
    if (application?.readyState === WebSocket.OPEN) application.send(media(sid, pcm));
  });
  call.on('error', () => application?.close());
  call.on('hangup', () => application?.close());
});
await server.listen();
console.log('listening');

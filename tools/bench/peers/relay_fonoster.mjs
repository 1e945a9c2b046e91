// AudioSocket to an Exotel-style application by the npm package @fonoster/streams, as its API says: onData from the
// caller, write() towards him. Its paced play() takes files alone, so what the application sends is not paced here.
// node relay_fonoster.mjs PORT APPLICATION_URL
import streams from '@fonoster/streams';
import { WebSocket } from 'ws';
import { media, payload, start } from './messages.mjs';

const [port, url] = process.argv.slice(2);
const server = new streams.AudioSocket();
server.onConnection((request, call) => {
  const sid = request.ref.replaceAll('-', '');
  const application = new WebSocket(url, { perMessageDeflate: false });
  application.on('open', () => application.send(start(sid)));
  application.on('message', (message) => {
    const pcm = payload(message);
    if (pcm) call.write(pcm);
  });
  application.on('error', () => call.hangup());
  call.onData((pcm) => {
    if (application.readyState === WebSocket.OPEN) application.send(media(sid, pcm));
  });
  call.onClose(() => application.close());
  call.onError(() => application.close());
});
server.listen(Number(port), '127.0.0.1', () => console.log('listening'));

"""Two voice applications, written as a customer of the hosted platform would write them: plain WebSocket servers that
know the platform's protocol and nothing of trunkbridge."""

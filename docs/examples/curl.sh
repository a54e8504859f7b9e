# Draws a picture, edits it, and has it described, over OpenAI's API and over V2. Needs curl and python3.
set -eu
url=${PREDICTORS_URL:-http://127.0.0.1:8080}
picture_of() { python3 -c 'import base64, json, sys; sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))'; }

curl -sf "$url/v1/images/generations" -H 'Content-Type: application/json' \
  -d '{"model": "flux", "prompt": "a large red circle on a white background", "seed": 7}' | picture_of >circle.png

# image to image: the red circle becomes a blue one of the same place
curl -sf "$url/v1/images/edits" -F model=flux -F prompt='a large blue circle on a white background' \
  -F image=@circle.png -F strength=0.9 -F seed=7 | picture_of >edited.png

curl -sf "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{"model": "qwen-vl", "messages": [{"role": "user", "content": [
  {"type": "image_url", "image_url": {"url": "data:image/png;base64,'"$(base64 <edited.png | tr -d '\n')"'"}},
  {"type": "text", "text": "Describe this picture."}]}]}' |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])'

# the same question over V2
curl -sf "$url/v2/models/qwen-vl/infer" -H 'Content-Type: application/json' -d '{"inputs": [
  {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["'"$(base64 <edited.png | tr -d '\n')"'"]},
  {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["Describe this picture."]}]}' |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["outputs"][0]["data"][0])'

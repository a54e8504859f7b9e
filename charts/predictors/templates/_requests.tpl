{{/* A curl line that works: a picture from a prompt, or words from a picture: (list name model address picture) */}}
{{- define "predictors.curl" -}}
{{- $name := index . 0 -}}{{- $url := index . 2 -}}
{{- if eq (index . 1).format "flux" -}}
curl -sf {{ $url }}/v2/models/{{ $name }}/infer -H 'Content-Type: application/json' -d '{"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a large red circle on a white background"]}], "parameters": {"seed": 7}}' | python3 -c 'import base64, json, sys; sys.stdout.buffer.write(base64.b64decode(next(o["data"][0] for o in json.load(sys.stdin)["outputs"] if o["name"] == "image")))' > {{ $name }}.png
{{- else -}}
curl -sf {{ $url }}/v2/models/{{ $name }}/infer -H 'Content-Type: application/json' -d '{"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["Describe this picture."]}, {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["{{ index . 3 }}"]}], "parameters": {"max_tokens": 32}}'
{{- end -}}
{{- end }}

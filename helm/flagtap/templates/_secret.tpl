{{- define "flagtap.secret" -}}
apiVersion: v1
kind: Secret
metadata:
  name: {{ include "flagtap.fullname" . | quote }}
  labels: {{- include "flagtap.labels" . | nindent 4 }}
type: Opaque
data:
  {{- range $name, $value := .Values.secrets }}
  {{ $name | quote }}: {{ $value | toString | b64enc }}
  {{- end }}
{{- end }}

{{/* The pod of a drain's Job, of the chart ("root") for the replica with this number ("ordinal"). */}}
{{- define "flagtap.drain.pod" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "flagtap.selector" $root | nindent 4 }}
    app.kubernetes.io/component: drain
    flagtap.dev/inject: "false"
    {{- with $root.Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  restartPolicy: Never
  {{- include "flagtap.podSpec" $root | nindent 2 }}
  serviceAccountName: {{ include "flagtap.serviceAccountName" $root | quote }}
  terminationGracePeriodSeconds: {{ $root.Values.gracePeriodSeconds }}
  containers:
    - name: flagtap
      {{- include "flagtap.container" $root | nindent 6 }}
      args: [drain, --config, /etc/flagtap/config.yaml, --within, {{ $root.Values.drainOrphans.within }}]
      env:
        {{- include "flagtap.env" $root | nindent 8 }}
      {{- with include "flagtap.secretName" $root }}
      envFrom:
        - secretRef: { name: {{ . | quote }} }
      {{- end }}
      ports:
        - { name: flagtap-metrics, containerPort: 8031 }
      resources: {{- toYaml ($root.Values.resources | default dict) | nindent 8 }}
      securityContext: {{- include "flagtap.securityContext" $root | nindent 8 }}
      volumeMounts:
        {{- include "flagtap.volumeMounts" $root | nindent 8 }}
  volumes:
    {{- include "flagtap.volumes" (dict "root" $root "config" (include "flagtap.fullname" $root) "secret" (include "flagtap.secretName" $root)) | nindent 4 }}
    - name: flagtap-data
      persistentVolumeClaim:
        claimName: flagtap-data-{{ include "flagtap.fullname" $root }}-{{ .ordinal }}
{{- end }}
